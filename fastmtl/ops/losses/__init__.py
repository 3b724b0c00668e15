"""Fused losses: for each op a public function, its schema and its backends."""
