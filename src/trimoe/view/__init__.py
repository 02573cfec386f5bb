"""The viewer: a local web page over run logs. Queries, pages and the app are apart; nothing here writes a log."""
