"""How milrun is judged: coremltools' own tests, unmodified, predicting through the stand-in."""
