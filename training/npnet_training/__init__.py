"""Collect noise pairs, train networks that make golden noise, evaluate them (arXiv 2411.09502, section 3)."""
