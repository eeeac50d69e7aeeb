"""Texts in pairs whose order nobody would dispute: (better, worse)."""

from __future__ import annotations

FLUENCY = [
    ("The river flows slowly through the old town.", "River the slowly old flows town the through."),
    ("She opened the window and looked at the sea.", "She open window the and looking on the seas at."),
    ("Paris is the capital of France.", "Paris capital be France of the is."),
    ("We will meet again tomorrow morning.", "We will mete agane tomorow mornin."),
]
RELEVANCE = [
    ("What is the capital of France?", "The capital of France is Paris.", "Bananas are rich in potassium."),
    ("Who wrote Hamlet?", "Hamlet was written by William Shakespeare.", "The train leaves at nine in the evening."),
    (
        "How do I boil an egg?",
        "Put the egg into boiling water and wait for eight minutes.",
        "The treaty was signed by both kings in the spring.",
    ),
    ("Where do penguins live?", "Most penguins live in the Antarctic.", "My brother plays the violin on Sundays."),
]
COHERENCE = [
    (
        "Anna lost her keys in the park. She looked for them under every bench. A child found the keys for her.",
        "Anna lost her keys in the park. Copper conducts electricity well. Parliament voted on the budget in March.",
    ),
    (
        "The volcano erupted at night. Ash covered the villages around it. By morning the villagers had fled.",
        "The volcano erupted at night. My favourite soup has carrots in it. Chess is played on 64 squares.",
    ),
    (
        "Bread needs flour, water and yeast. Mix the flour with the water and knead the dough. Then bake the bread.",
        "Bread needs flour, water and yeast. Bread needs flour, water and yeast. Bread needs flour, water and yeast.",
    ),
]
DIVERSITY = (
    ["A fox ran over the hill.", "Rain is due tonight.", "He sold seven boats.", "Please close that door."],
    ["The answer is yes.", "The answer is yes.", "The answer is no.", "The answer is yes."],
)
REPETITION = [
    (
        "The ship left the harbour at dawn and reached the island by noon.",
        "the ship the ship the ship the ship the ship the",
    ),
    ("We talked about music, then about films.", "I think so I think so I think so I think so"),
]
