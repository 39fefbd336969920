"""Columns of text: what they hold, by evidence, and how their texts become numbers, dates or categories."""
