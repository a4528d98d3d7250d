"""Models in llama.cpp's format, as its conversion would write them."""
