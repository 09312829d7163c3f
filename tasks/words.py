"""Word lists: short common words, each a single token for most tokenizers."""

NOUNS = (  # singular, plural; people and animals, which can do things
    ("boy", "boys"), ("girl", "girls"), ("man", "men"), ("woman", "women"), ("child", "children"),
    ("friend", "friends"), ("teacher", "teachers"), ("student", "students"), ("doctor", "doctors"),
    ("driver", "drivers"), ("writer", "writers"), ("author", "authors"), ("artist", "artists"),
    ("actor", "actors"), ("player", "players"), ("leader", "leaders"), ("worker", "workers"),
    ("king", "kings"), ("dog", "dogs"), ("cat", "cats"), ("bird", "birds"), ("horse", "horses"),
)  # fmt: skip
THINGS = (  # singular, plural; what one can be near to
    ("car", "cars"), ("house", "houses"), ("table", "tables"), ("tree", "trees"), ("door", "doors"),
    ("box", "boxes"), ("chair", "chairs"), ("window", "windows"), ("book", "books"), ("wall", "walls"),
    ("tower", "towers"), ("river", "rivers"),
)  # fmt: skip
PREPOSITIONS = ("near", "behind", "beside", "above", "under", "beyond")
AUXILIARIES = (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"))  # singular, plural
TRANSITIVES = (  # singular, plural
    ("likes", "like"), ("sees", "see"), ("knows", "know"), ("loves", "love"), ("helps", "help"),
    ("hates", "hate"), ("follows", "follow"), ("calls", "call"), ("finds", "find"), ("watches", "watch"),
)  # fmt: skip
GIRLS = ("Lily", "Lucy", "Mia", "Sue", "Sara", "Amy", "Ella", "Anna", "Mary", "Jane", "Kate", "Emma")
BOYS = ("Tim", "Tom", "Ben", "Max", "Bob", "Leo", "Jack", "John", "Sam", "Mark", "Paul", "Joe")
PLACES = ("store", "park", "school", "beach", "office", "garden", "station", "library")
GIFTS = ("drink", "ball", "book", "ring", "letter", "basket", "bottle", "key")
SPANS = (
    "war", "siege", "reign", "trial", "voyage", "journey", "dynasty", "empire", "famine", "drought",
    "conflict", "project", "debate", "tour", "truce", "plague", "treaty", "revolt", "campaign", "strike",
)  # fmt: skip
