"""The public fakes, tested as carefully as what they test."""
