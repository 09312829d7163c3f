"""What recurrent models carry from token to token, as values."""
