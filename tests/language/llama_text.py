"""What the random Llamas of these tests have in common."""

WORDS, WIDTH, INNER, LONGEST = 200, 64, 80, 256  # INNER is no multiple of 32: its last group is not full

TEXT = "the cat sat on the mat and the dog ran to the house where a bird sang of rain and of the sea " * 40
