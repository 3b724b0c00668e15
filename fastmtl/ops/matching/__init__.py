"""Ops of set prediction: assignment, mask costs, point sampling."""
