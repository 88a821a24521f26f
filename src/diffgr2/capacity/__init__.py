"""What a recipe takes at another size: costs measured on a machine, and what follows from them."""
