"""The server: engine thread, HTTP, limits, metrics and the page (`diffgr2 serve --model DIR`)."""
