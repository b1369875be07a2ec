"""The page report/index.html."""
