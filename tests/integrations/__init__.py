"""Tests of integrations/, each against `solver.sample`."""
