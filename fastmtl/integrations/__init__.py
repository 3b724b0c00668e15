"""fastmtl in other libraries' training loops."""
