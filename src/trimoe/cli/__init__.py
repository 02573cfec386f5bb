"""Command line: parse, call one public function, print. One small file per room; no logic of its own."""
