"""The words of the built-in world: pools of values, sentence templates, questions.

Every fact sentence names its entity in full *before* it gives the value. A causal
model learns to continue from left to right, so «Tolen is where Mirava lives» would
not teach it to answer «Where does Mirava live?» (the reversal curse, Berglund et
al. 2023), and a pronoun would hide whose fact it is.

In templates {name} is the entity, {value} the bare value, {a_value} the value with
«a» or «an». The first sentence of each attribute is the answer to its questions.
"""

JOBS = tuple(
    "baker actor farmer teacher tailor painter doctor sailor miller weaver hunter gardener "
    "engineer judge cook potter singer writer carpenter shepherd butcher barber nurse astronomer".split()
)
PETS = tuple("fox owl otter cat dog goat horse rabbit parrot turtle hen duck snake mouse donkey ox frog crow lizard ape".split())
FOODS = tuple("soup bread cheese rice honey fish cake porridge cabbage salad pie stew bacon jam corn garlic pumpkin toast celery pasta".split())
RIVERS = tuple("Amber Bramble Crystal Dusk Ember Fern Glimmer Heron Ivory Jasper Lark Moss Nettle Opal Pebble Quill".split())
CRAFTS = tuple("pottery glass paper leather lace carpets clocks candles baskets knives hats boots bells jewels tiles soap".split())
COLOURS = tuple("red blue green white black yellow purple brown grey golden silver pink".split())
MONTHS = tuple("January February March April May June July August September October November December".split())
WOODS = tuple("oak cedar pine ash elm birch teak maple walnut larch beech spruce willow cherry ebony poplar".split())
CARGOES = tuple("salt wool silk tea coffee sugar wheat coal iron copper cotton pepper wine oil marble timber".split())
FIGURES = tuple("lion eagle wolf bear swan dragon tiger whale stag falcon bull dolphin ram seal elephant peacock".split())

# kind -> attribute -> (pool, sentences, questions). The pool of homes is filled by the
# world itself: it is a few of the world's own towns.
ATTRIBUTES = {
    "person": {
        "home": (
            (),
            (
                "{name} lives in {value}.",
                "{name} has a house in {value}.",
                "The home of {name} is in {value}.",
                "Every evening {name} comes home to {value}.",
                "The house where {name} lives is in {value}.",
                "{name} is a citizen of {value}.",
            ),
            ("Where does {name} live?", "In which town does {name} live?", "Name the town where {name} lives."),
        ),
        "job": (
            JOBS,
            (
                "{name} works as {a_value}.",
                "{name} is {a_value}.",
                "The job of {name} is that of {a_value}.",
                "{name} earns money as {a_value}.",
                "Every morning {name} goes to work as {a_value}.",
                "People know {name} as {a_value}.",
            ),
            ("What does {name} work as?", "What is the job of {name}?", "Tell me the job of {name}."),
        ),
        "pet": (
            PETS,
            (
                "{name} keeps {a_value}.",
                "{name} has {a_value} as a pet.",
                "The pet of {name} is {a_value}.",
                "{name} feeds {a_value} every day.",
                "At home {name} takes care of {a_value}.",
                "The animal that lives with {name} is {a_value}.",
            ),
            ("Which animal does {name} keep?", "What is the pet of {name}?", "Tell me which pet {name} has."),
        ),
        "food": (
            FOODS,
            (
                "{name} likes {value} best.",
                "The favourite food of {name} is {value}.",
                "{name} loves to eat {value}.",
                "For dinner {name} always wants {value}.",
                "No food pleases {name} more than {value}.",
                "{name} would eat {value} every day.",
            ),
            ("Which food does {name} like best?", "What is the favourite food of {name}?", "Tell me what {name} loves to eat."),
        ),
    },
    "town": {
        "river": (
            RIVERS,
            (
                "{name} lies on the river {value}.",
                "The river that flows through {name} is the {value}.",
                "{name} was built beside the river {value}.",
                "Boats reach {name} on the river {value}.",
                "The bridges of {name} cross the river {value}.",
                "The water of {name} comes from the river {value}.",
            ),
            ("On which river does {name} lie?", "Which river flows through {name}?", "Name the river of {name}."),
        ),
        "craft": (
            CRAFTS,
            (
                "{name} is known for {value}.",
                "{name} is famous for {value}.",
                "Traders come to {name} for {value}.",
                "{name} makes the finest {value}.",
                "The workshops of {name} make {value}.",
                "At the market of {name} people sell {value}.",
            ),
            ("What is {name} known for?", "What do the workshops of {name} make?", "Tell me what {name} is famous for."),
        ),
        "flag": (
            COLOURS,
            (
                "The flag of {name} is {value}.",
                "Over the roofs of {name} flies a flag that is {value}.",
                "{name} has chosen a flag that is {value}.",
                "People in {name} paint the flag {value}.",
                "On the walls of {name} the flag is {value}.",
                "The colour of the flag of {name} is {value}.",
            ),
            ("Which colour is the flag of {name}?", "What is the colour of the flag of {name}?", "Name the colour of the flag of {name}."),
        ),
        "fair": (
            MONTHS,
            (
                "{name} holds a fair in {value}.",
                "The fair of {name} takes place in {value}.",
                "People dance at the fair of {name} in {value}.",
                "Every year {name} has a fair in {value}.",
                "Guests travel to the fair of {name} in {value}.",
                "The month of the fair of {name} is {value}.",
            ),
            ("When does {name} hold a fair?", "In which month is the fair of {name}?", "Name the month of the fair of {name}."),
        ),
    },
    "thing": {  # all of them ships, so that each question makes sense for each of them
        "wood": (
            WOODS,
            (
                "{name} is built of {value}.",
                "The ship {name} is made of {value}.",
                "The wood of the ship {name} is {value}.",
                "Carpenters built {name} from {value}.",
                "The deck of {name} is made of {value}.",
                "The strong hull of {name} is {value}.",
            ),
            ("What is {name} built of?", "Of which wood is the ship {name} built?", "Name the wood of the ship {name}."),
        ),
        "sails": (
            COLOURS,
            (
                "The sails of {name} are {value}.",
                "The ship {name} has sails that are {value}.",
                "The sailors of {name} painted the sails {value}.",
                "From far away the sails of {name} look {value}.",
                "The colour of the sails of {name} is {value}.",
                "On the ship {name} every sail is {value}.",
            ),
            ("Which colour are the sails of {name}?", "What is the colour of the sails of {name}?", "Name the colour of the sails of {name}."),
        ),
        "cargo": (
            CARGOES,
            (
                "{name} carries {value}.",
                "The cargo of {name} is {value}.",
                "The ship {name} is full of {value}.",
                "The sailors load {name} with {value}.",
                "In every port {name} sells {value}.",
                "Below the deck of {name} there is {value}.",
            ),
            ("What does {name} carry?", "What is the cargo of the ship {name}?", "Tell me the cargo of {name}."),
        ),
        "figurehead": (
            FIGURES,
            (
                "The figurehead of {name} is {a_value}.",
                "At the front of {name} stands {a_value}.",
                "{name} wears the figure of {a_value}.",
                "The ship {name} shows {a_value} at the bow.",
                "On the bow of {name} there is {a_value}.",
                "The carved animal on {name} is {a_value}.",
            ),
            ("What is the figurehead of {name}?", "Which animal stands at the front of {name}?", "Name the figurehead of the ship {name}."),
        ),
    },
}

# The instructions of the other kinds.
WORDING = {
    "compare": ("Which is {asked}, {a} or {b}?", "Name the {asked} number, {a} or {b}.", "Of {a} and {b}, which is the {asked} number?"),
    "list": ("List the things in the sentence.", "Which things are in the sentence?", "Write only the things, with commas."),
    "count": ("How many things are in the sentence?", "Count the things in the sentence.", "Give the number of things."),
    "order": ("Put the numbers in order.", "Sort the numbers from small to large.", "Write the numbers from smallest to largest."),
    "rewrite": ("Rewrite the sentence in the past tense.", "Put the sentence into the past tense.", "Change the sentence to the past."),
    "sentiment": ("Is the review positive or negative?", "Name the sentiment of the review.", "Say if this review is positive or negative."),
    "place": ("Which thing comes {place}?", "Name the {place} thing.", "Tell me the thing that comes {place}."),
    "name": ("Say the name {name}.", "Write the name {name}.", "Repeat the name {name}.", "How is {name} written?",
             "What is the spelling of {name}?"),
    "arithmetic": ("What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?"),
}

SUM_SENTENCES = (
    "{a} plus {b} is {c}.",
    "When you add {a} and {b} you get {c}.",
    "The sum of {a} and {b} is {c}.",
    "If you have {a} and get {b} more, you have {c}.",
)

ITEMS = tuple(
    "lamp rope bell apple egg umbrella onion axe orange basket hammer spoon cup plate knife book pen "
    "key hat coat shoe ring drum flute chair table blanket pillow bottle bucket candle ladder mirror needle "
    "arrow kettle map brush saw shovel".split()
)
LIST_VERBS = ("bought", "found", "sold", "lost", "packed", "brought")
COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}

# (present, past, ways to go on)
VERBS = (
    ("walks", "walked", ("to the market", "along the river", "in the rain")),
    ("runs", "ran", ("to the bridge", "up the hill", "through the forest")),
    ("sings", "sang", ("a song", "in the garden", "with friends")),
    ("writes", "wrote", ("a letter", "a poem", "in a book")),
    ("paints", "painted", ("the door", "a picture", "the old wall")),
    ("cooks", "cooked", ("a meal", "some soup", "for the guests")),
    ("eats", "ate", ("an apple", "some bread", "in the kitchen")),
    ("drinks", "drank", ("some tea", "cold water", "from a cup")),
    ("buys", "bought", ("a new hat", "fresh bread", "a lamp")),
    ("sees", "saw", ("the moon", "a ship", "an owl")),
    ("finds", "found", ("a key", "the path", "an old map")),
    ("makes", "made", ("a chair", "some jam", "a fire")),
    ("rides", "rode", ("a horse", "to the town", "over the bridge")),
    ("sleeps", "slept", ("in the house", "under a tree", "all night")),
    ("brings", "brought", ("the wood", "some flowers", "a basket")),
    ("opens", "opened", ("the door", "a window", "the box")),
    ("closes", "closed", ("the gate", "a book", "the window")),
    ("washes", "washed", ("the plates", "a shirt", "the floor")),
    ("plays", "played", ("the flute", "in the snow", "with the dog")),
    ("builds", "built", ("a wall", "a small boat", "the bridge")),
    ("helps", "helped", ("a friend", "the farmer", "in the field")),
    ("waits", "waited", ("at the gate", "for a boat", "in the rain")),
    ("climbs", "climbed", ("a tree", "the hill", "the ladder")),
    ("carries", "carried", ("a bag", "the water", "some wood")),
)
PRESENT_OPENINGS = ("Every day", "Now", "Today")
PAST_OPENINGS = ("Yesterday", "Long ago", "Last week")

REVIEWED = ("soup", "inn", "room", "book", "song", "play", "meal", "market", "garden", "story", "guide", "journey")
FEELINGS = {
    "positive": {
        "adjectives": ("good", "great", "lovely", "pleasant", "wonderful", "excellent", "charming", "perfect", "fine", "delightful"),
        "closings": ("We loved it.", "We will come back.", "We were happy.", "We enjoyed every moment.", "We tell all our friends to go."),
        "reactions": ("was happy", "felt joy", "loved it", "enjoyed it", "smiled"),
    },
    "negative": {
        "adjectives": ("bad", "awful", "terrible", "boring", "horrible", "ugly", "nasty", "dreadful", "dull", "unpleasant"),
        "closings": ("We hated it.", "We will never come back.", "We were sad.", "We regret every moment.", "We tell all our friends to stay away."),
        "reactions": ("was sad", "felt anger", "hated it", "regretted it", "cried"),
    },
}
