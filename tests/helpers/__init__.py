"""What tests of several files share: inputs, assertions, small data sets."""
