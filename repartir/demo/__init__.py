"""The example behind `repartir demo`: a forecasting sweep on two real series and a Monte Carlo.

Read in this order: `series` (the data), `forecast` (one candidate of the sweep), `option` (one batch of the
Monte Carlo), `study` (all of it as tasks for an executor), `report` (tables and JSON), `run` (the command).
"""
