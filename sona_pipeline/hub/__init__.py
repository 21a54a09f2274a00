"""What is published: repositories, cards, and the form for diffusers' community examples."""
