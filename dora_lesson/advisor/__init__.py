"""Which adapter for which constraints.

One way leads through these files: `request` (the constraints, checked), `memory_fit` (what fits the card), `tree`
(which method), `reasons` and `changes` (why, and which other request gets another answer), `recommend` (the answer),
`text` (the answer in words). Beside it stand `findings` (what the course knows, with evidence), `interpret` (a reader's
own scores), `script`, `prompts` and `skill` (what a reader takes along). Sentences live in `data/advisor`.
"""
