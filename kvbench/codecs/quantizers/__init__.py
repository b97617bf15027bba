"""How many bits a coordinate gets, and how codes are packed: pure tensor maths."""
