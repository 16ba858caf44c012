"""The embedded model's world: seeded scenes, questions, text knowledge, training and the suites that test it.

Nothing here is downloaded: every picture is drawn, every fact is made up from a seed. What the model is trained
on and what it is tested on are kept apart by rules in `words` (rendered words, shape-colour pairs, layouts) and
`phrasing` (question wordings), and a test holds them apart.
"""
