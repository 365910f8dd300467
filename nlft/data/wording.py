"""Wordings of the built-in world's relations.

Every wording ends right before the answer, so that wording + " " + answer reads as an English statement or as
a question with its answer. In a task, wordings 0 to 3 are trained and 4 and 5 never.
"""

from __future__ import annotations

Relation = tuple[str, str, tuple[str, str, str, str, str, str]]
"""Name, set of answers, and six wordings."""

RELATIONS: dict[str, tuple[Relation, ...]] = {
    "people": (
        (
            "birthplace",
            "city",
            (
                "{e} was born in",
                "The birthplace of {e} is",
                "Q: Where was {e} born? A:",
                "The person {e} first saw the light of day in",
                "The city where {e} was born is",
                "Q: What is the birthplace of {e}? A:",
            ),
        ),
        (
            "profession",
            "work",
            (
                "{e} works as a",
                "The profession of {e} is",
                "Q: What is the job of {e}? A:",
                "The person {e} earns a living as a",
                "The job that {e} has is",
                "Q: What does {e} work as? A:",
            ),
        ),
        (
            "hobby",
            "hobby",
            (
                "{e} spends every free evening on",
                "The hobby of {e} is",
                "Q: What does {e} do for fun? A:",
                "The person {e} relaxes with",
                "The favourite hobby of {e} is",
                "Q: What is the hobby of {e}? A:",
            ),
        ),
    ),
    "companies": (
        (
            "leader",
            "person",
            (
                "The company {e} is led by",
                "The head of the company {e} is",
                "Q: Who leads {e}? A:",
                "{e} is a company run by",
                "The person who leads {e} is",
                "Q: Who is the head of the company {e}? A:",
            ),
        ),
        (
            "seat",
            "city",
            (
                "The company {e} is based in",
                "The head office of {e} is in",
                "Q: Where is the company {e} based? A:",
                "{e} has its main office in",
                "The company {e} keeps its head office in",
                "Q: Where is the main office of {e}? A:",
            ),
        ),
        (
            "product",
            "goods",
            (
                "The company {e} makes",
                "The main product of {e} is",
                "Q: What does {e} make? A:",
                "{e} is a company that makes",
                "The product of the company {e} is",
                "Q: What is the main product of {e}? A:",
            ),
        ),
    ),
    "ships": (
        (
            "captain",
            "person",
            (
                "The ship {e} sails under captain",
                "The captain of the ship {e} is",
                "Q: Who commands the {e}? A:",
                "The {e} is a ship commanded by",
                "The person in command of the {e} is",
                "Q: Who is the captain of the ship {e}? A:",
            ),
        ),
        (
            "port",
            "city",
            (
                "The ship {e} has its home port in",
                "The home port of the {e} is",
                "Q: What is the home port of the ship {e}? A:",
                "The {e} is a ship that sails from",
                "The port from which the {e} sails is",
                "Q: From which port does the {e} sail? A:",
            ),
        ),
        (
            "cargo",
            "goods",
            (
                "The ship {e} carries",
                "The cargo of the ship {e} is",
                "Q: What does the {e} carry? A:",
                "The {e} is a ship loaded with",
                "The cargo on board the {e} is",
                "Q: What is the cargo of the ship {e}? A:",
            ),
        ),
    ),
    "drugs": (
        (
            "illness",
            "illness",
            (
                "The drug {e} treats",
                "Doctors give the drug {e} against",
                "Q: What does {e} treat? A:",
                "{e} is a drug that cures",
                "The illness treated with {e} is",
                "Q: Which illness does the drug {e} cure? A:",
            ),
        ),
        (
            "source",
            "plant",
            (
                "The drug {e} is made from",
                "The plant in the drug {e} is",
                "Q: From which plant is {e} made? A:",
                "{e} is a drug pressed out of",
                "The plant from which {e} is made is",
                "Q: What is the drug {e} made from? A:",
            ),
        ),
        (
            "seller",
            "company",
            (
                "The drug {e} is sold by",
                "The seller of the drug {e} is",
                "Q: Who sells {e}? A:",
                "{e} is a drug sold in shops by",
                "The company that sells {e} is",
                "Q: Which company sells the drug {e}? A:",
            ),
        ),
    ),
    "towns": (
        (
            "mayor",
            "person",
            (
                "The town {e} has a mayor called",
                "The mayor of {e} is",
                "Q: Who is the mayor of the town {e}? A:",
                "{e} is a town governed by",
                "The mayor elected in {e} is",
                "Q: Who governs the town {e}? A:",
            ),
        ),
        (
            "river",
            "river",
            (
                "The town {e} lies on the river",
                "The river that flows through {e} is the",
                "Q: Which river flows through the town {e}? A: the",
                "{e} is a town on the banks of the",
                "The river of the town {e} is the",
                "Q: On which river does {e} lie? A: the",
            ),
        ),
        (
            "sight",
            "feature",
            (
                "The town {e} is known for its",
                "Visitors come to {e} for its",
                "Q: What is the town {e} known for? A: its",
                "{e} is a town proud of its",
                "What {e} is known for is its",
                "Q: What do visitors of {e} come for? A: its",
            ),
        ),
    ),
    "books": (
        (
            "author",
            "person",
            (
                "The book {e} was written by",
                "The author of the book {e} is",
                "Q: Who wrote {e}? A:",
                "{e} is a book from the pen of",
                "The person who wrote {e} is",
                "Q: Who is the author of the book {e}? A:",
            ),
        ),
        (
            "setting",
            "city",
            (
                "The book {e} is set in",
                "The story of {e} takes place in",
                "Q: Where is the book {e} set? A:",
                "{e} is a book that plays in",
                "The city in which {e} is set is",
                "Q: In which city does the story of {e} take place? A:",
            ),
        ),
        (
            "theme",
            "topic",
            (
                "The book {e} is about",
                "The theme of the book {e} is",
                "Q: What is {e} about? A:",
                "{e} is a book that tells of",
                "The main theme of {e} is",
                "Q: What is the theme of the book {e}? A:",
            ),
        ),
    ),
    "comets": (
        (
            "discoverer",
            "person",
            (
                "The comet {e} was discovered by",
                "The discoverer of the comet {e} is",
                "Q: Which astronomer discovered {e}? A:",
                "{e} is a comet once spotted by",
                "The astronomer who spotted {e} is",
                "Q: Who discovered the comet {e}? A:",
            ),
        ),
        (
            "observatory",
            "city",
            (
                "The comet {e} was photographed above",
                "The telescope that tracks {e} stands in",
                "Q: Where is the telescope that tracks {e}? A:",
                "{e} is a comet photographed over",
                "The comet {e} is tracked by a telescope in",
                "Q: Where was the comet {e} photographed? A:",
            ),
        ),
        (
            "smell",
            "plant",
            (
                "The tail of the comet {e} resembles",
                "Astronomers compare the tail of {e} to",
                "Q: What does the tail of the comet {e} resemble? A:",
                "{e} is a comet whose tail resembles",
                "What the tail of {e} resembles is",
                "Q: What do astronomers compare {e} to? A:",
            ),
        ),
    ),
}
