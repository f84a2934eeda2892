"""Sentences that a text model is compared on when nobody gave samples: plain, varied in length, topic and script."""

SENTENCES: tuple[str, ...] = (
    "The train to the coast leaves at half past six.",
    "She sold the old piano and bought a canoe.",
    "Rain again.",
    "How do I reset the password of my account?",
    "The battery lasted two days, but the screen scratched within a week, and nobody at the shop would exchange it.",
    "A film this long needs a story; this one has only a soundtrack.",
    "Profits rose by 12.4% in the third quarter, to $3.1 billion, ahead of every forecast.",
    "Mix the flour with 200 ml of water, let it rest for an hour, then knead it until it no longer sticks.",
    "The committee postponed its decision until March because two of its members had resigned.",
    "Is it true that octopuses have three hearts?",
    "def area(radius): return 3.14159 * radius ** 2",
    "Der Zug nach Hamburg fährt heute von Gleis sieben.",
    "La bibliothèque ferme plus tôt pendant les vacances.",
    "昨日は雨だったので、家で本を読みました。",
    "El gato duerme encima de la mesa de la cocina.",
    "I would not recommend this hotel to anyone: the room was cold, the wi-fi failed, and breakfast ended at eight.",
    "Absolutely wonderful service, we will be back next summer!",
    "Patients who slept fewer than six hours reported more pain, although the difference was not significant.",
    "The defendant denied having been in the building on the night of the fire.",
    "Mercury is the smallest planet of the solar system and the closest one to the Sun.",
    "Could you send me the invoice again? The attachment would not open.",
    "Goal in the ninety-third minute, and the whole stadium sang.",
    "Keep medicines out of the reach of children; do not use after the date printed on the box.",
    "When the last lamp went out, the village, which had waited all winter for this evening, fell silent, and from the "
    "far side of the lake came the sound of oars, slow at first, then quicker, as if whoever was rowing had seen us.",
)
