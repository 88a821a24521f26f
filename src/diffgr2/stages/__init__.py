"""One readable script per stage; `table` lists them."""
