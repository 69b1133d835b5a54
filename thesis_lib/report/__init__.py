"""Rows go in; tables, figures, interactive panels, pages and the documentation site come out.

Nothing is measured here.
"""
