"""Greedy reconstruction: the order in which a layer's experts can be dropped with the least change of its output."""
