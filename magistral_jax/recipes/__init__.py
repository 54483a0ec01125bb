"""What is done with the rooms besides the loop. Recipes import rooms; rooms never import them."""
