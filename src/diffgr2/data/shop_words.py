"""The vocabulary of the simulated beauty-and-care shop: departments, products, brands, words.

Contract: plain constants that `data.shop_catalogue` combines. All names are invented or generic;
product nouns are unique, and `goes_with` lists the product types bought after this one, the most
natural first. A department's products complete each other, so that any subset of departments still
holds complements. Not here: how many items there are, who buys them, or any real product.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """A product type: the second level of a category path."""

    name: str  # category, for example "Shampoo"
    noun: str  # as it reads in a title
    price: float  # of a mid-range item
    sizes: tuple[str, ...]
    goes_with: tuple[str, ...]  # names of product types, most natural first
    cared: bool = False  # its variants are ingredients, whatever the department's are


@dataclass(frozen=True)
class Department:
    """The first level of a category path; its needs are the third."""

    name: str
    needs: tuple[tuple[str, str], ...]  # (category, pattern of the noun in a title)
    variant: str  # pattern of the variant in a title
    variants: tuple[str, ...]
    products: tuple[Product, ...]


LIQUID = ("100 ml", "200 ml", "250 ml", "400 ml", "1 l")
TUBE = ("15 ml", "30 ml", "50 ml", "75 ml")
SPRAY = ("30 ml", "50 ml", "100 ml")
STICK = ("2 g", "4 g", "Mini", "Duo")
PACK = ("2-Pack", "4-Pack", "8-Pack", "12-Pack")
JAR = ("50 g", "150 g", "300 g", "500 g")
BOTTLE = ("8 ml", "12 ml", "15 ml", "Duo")
INGREDIENTS = ("Vitamin E", "Aloe Vera", "Jojoba", "Almond Oil", "Green Tea", "Apricot Oil")

HAIR = Department(
    "Hair",
    (
        ("Dry", "{} for Dry Hair"),
        ("Oily", "{} for Oily Hair"),
        ("Color-Treated", "{} for Color-Treated Hair"),
        ("Curly", "{} for Curly Hair"),
        ("Fine", "{} for Fine Hair"),
    ),
    " with {}",
    (
        "Argan Oil",
        "Keratin",
        "Coconut Milk",
        "Biotin",
        "Tea Tree",
        "Shea Butter",
        "Rosemary",
        "Macadamia",
        "Silk Protein",
        "Green Tea",
        "Avocado",
        "Rice Water",
    ),
    (
        Product("Shampoo", "Shampoo", 9, LIQUID, ("Conditioner", "Hair Masks")),
        Product("Conditioner", "Conditioner", 9, LIQUID, ("Leave-In Care", "Hair Styling")),
        Product("Hair Masks", "Hair Mask", 14, JAR, ("Leave-In Care", "Shampoo")),
        Product("Leave-In Care", "Leave-In Spray", 12, LIQUID, ("Hair Styling", "Hair Oils")),
        Product("Hair Styling", "Styling Cream", 11, TUBE, ("Hair Oils", "Shampoo")),
        Product("Hair Oils", "Hair Oil", 16, TUBE, ("Leave-In Care", "Hair Masks")),
    ),
)
SKIN = Department(
    "Skin",
    (
        ("Dry", "{} for Dry Skin"),
        ("Oily", "{} for Oily Skin"),
        ("Sensitive", "{} for Sensitive Skin"),
        ("Mature", "{} for Mature Skin"),
        ("Blemish-Prone", "{} for Blemish-Prone Skin"),
    ),
    " with {}",
    (
        "Hyaluronic Acid",
        "Vitamin C",
        "Niacinamide",
        "Retinol",
        "Aloe Vera",
        "Ceramides",
        "Green Tea",
        "Rose Water",
        "Oat Extract",
        "Squalane",
        "Peptides",
        "Licorice Root",
    ),
    (
        Product("Cleansers", "Face Cleanser", 11, LIQUID, ("Toners", "Face Masks")),
        Product("Toners", "Face Toner", 12, LIQUID, ("Face Serums", "Moisturizers")),
        Product("Face Serums", "Face Serum", 24, TUBE, ("Moisturizers", "Eye Creams")),
        Product("Moisturizers", "Moisturizer", 18, TUBE, ("Sunscreens", "Cleansers")),
        Product("Eye Creams", "Eye Cream", 22, TUBE, ("Face Masks", "Face Serums")),
        Product("Sunscreens", "Daily Sunscreen SPF 50", 16, TUBE, ("Cleansers", "Body Lotions")),
        Product("Face Masks", "Face Mask", 8, JAR, ("Toners", "Face Serums")),
    ),
)
MAKEUP = Department(
    "Makeup",
    (
        ("Matte", "Matte {}"),
        ("Dewy", "Dewy {}"),
        ("Long-Wear", "Long-Wear {}"),
        ("Natural", "Natural-Finish {}"),
        ("Waterproof", "Waterproof {}"),
    ),
    " in {}",
    (
        "Warm Sand",
        "Rosewood",
        "Ivory",
        "Deep Cocoa",
        "Golden Honey",
        "Dusty Pink",
        "Espresso",
        "Coral Sunset",
        "Soft Plum",
        "Champagne",
        "Cherry Red",
        "Taupe",
    ),
    (
        Product("Primers", "Face Primer", 15, TUBE, ("Foundations", "Concealers"), True),
        Product("Foundations", "Foundation", 19, TUBE, ("Concealers", "Powders")),
        Product("Concealers", "Concealer", 12, STICK, ("Powders", "Blushes")),
        Product("Powders", "Setting Powder", 16, STICK, ("Blushes", "Mascaras")),
        Product("Blushes", "Blush", 13, STICK, ("Lipsticks", "Primers")),
        Product("Mascaras", "Mascara", 12, STICK, ("Eyeliners", "Makeup Removers")),
        Product("Eyeliners", "Eyeliner", 9, STICK, ("Mascaras", "Makeup Removers")),
        Product("Lipsticks", "Lipstick", 14, STICK, ("Blushes", "Mascaras")),
        Product("Makeup Removers", "Makeup Remover", 8, LIQUID, ("Cleansers", "Foundations"), True),
    ),
)
BODY = Department(
    "Bath & Body",
    (
        ("Lavender", "Lavender {}"),
        ("Citrus", "Citrus {}"),
        ("Coconut", "Coconut {}"),
        ("Unscented", "Unscented {}"),
        ("Vanilla", "Vanilla {}"),
    ),
    " with {}",
    (
        "Shea Butter",
        "Sea Salt",
        "Almond Oil",
        "Oatmeal",
        "Cocoa Butter",
        "Glycerin",
        "Honey",
        "Jojoba",
        "Olive Oil",
        "Chamomile",
        "Vitamin E",
        "Bamboo",
    ),
    (
        Product("Body Wash", "Body Wash", 8, LIQUID, ("Body Lotions", "Body Scrubs")),
        Product("Body Lotions", "Body Lotion", 10, LIQUID, ("Hand Creams", "Body Wash")),
        Product("Body Scrubs", "Body Scrub", 13, JAR, ("Body Lotions", "Bath Salts")),
        Product("Bath Salts", "Bath Salts", 11, JAR, ("Body Scrubs", "Candles")),
        Product("Hand Creams", "Hand Cream", 7, TUBE, ("Cuticle Care", "Body Lotions")),
        Product("Deodorants", "Deodorant", 6, SPRAY, ("Body Wash", "Razors")),
    ),
)
SHAVE = Department(
    "Shaving",
    (
        ("Sensitive", "{} for Sensitive Skin"),
        ("Close Shave", "Close-Shave {}"),
        ("Classic", "Classic {}"),
        ("Travel", "Travel {}"),
    ),
    " with {}",
    (
        "Aloe",
        "Sandalwood",
        "Menthol",
        "Vitamin E",
        "Cedar",
        "Witch Hazel",
        "Eucalyptus",
        "Bay Rum",
        "Charcoal",
        "Coconut",
    ),
    (
        Product("Razors", "Razor", 15, PACK, ("Razor Blades", "Shaving Gels")),
        Product("Razor Blades", "Razor Blades", 17, PACK, ("Shaving Gels", "Aftershaves")),
        Product("Shaving Gels", "Shaving Gel", 7, LIQUID, ("Aftershaves", "Razor Blades")),
        Product("Aftershaves", "Aftershave Balm", 13, SPRAY, ("Beard Care", "Deodorants")),
        Product("Beard Care", "Beard Oil", 14, TUBE, ("Aftershaves", "Razors")),
    ),
)
NAILS = Department(
    "Nails",
    (
        ("Gel", "Gel {}"),
        ("Quick-Dry", "Quick-Dry {}"),
        ("Strengthening", "Strengthening {}"),
        ("Breathable", "Breathable {}"),
    ),
    ", {}",
    (
        "Ballet Pink",
        "Midnight Blue",
        "Cherry",
        "Mint",
        "Pearl",
        "Crystal Clear",
        "Lilac",
        "Copper",
        "Scarlet",
        "Rose Gold",
        "Nude Beige",
    ),
    (
        Product("Base Coats", "Base Coat", 8, BOTTLE, ("Nail Polish", "Top Coats"), True),
        Product("Nail Polish", "Nail Polish", 8, BOTTLE, ("Top Coats", "Polish Removers")),
        Product("Top Coats", "Top Coat", 8, BOTTLE, ("Polish Removers", "Nail Polish"), True),
        Product(
            "Polish Removers", "Polish Remover", 6, LIQUID, ("Cuticle Care", "Base Coats"), True
        ),
        Product("Cuticle Care", "Cuticle Oil", 9, TUBE, ("Base Coats", "Hand Creams"), True),
    ),
)
SCENT = Department(
    "Fragrance",
    (
        ("Floral", "Floral {}"),
        ("Woody", "Woody {}"),
        ("Fresh", "Fresh {}"),
        ("Gourmand", "Gourmand {}"),
    ),
    ", {}",
    (
        "Jasmine",
        "Cedarwood",
        "Bergamot",
        "Vanilla",
        "Amber",
        "Fig",
        "Iris",
        "White Tea",
        "Neroli",
        "Patchouli",
        "Tonka Bean",
        "Peony",
    ),
    (
        Product("Perfumes", "Eau de Parfum", 48, SPRAY, ("Body Mists", "Perfume Oils")),
        Product("Body Mists", "Body Mist", 13, SPRAY, ("Perfumes", "Body Lotions")),
        Product("Perfume Oils", "Perfume Oil", 29, TUBE, ("Perfumes", "Candles")),
        Product("Candles", "Scented Candle", 19, JAR, ("Room Sprays", "Bath Salts")),
        Product("Room Sprays", "Room Spray", 14, SPRAY, ("Candles", "Body Mists")),
    ),
)
ORAL = Department(
    "Oral Care",
    (
        ("Whitening", "Whitening {}"),
        ("Sensitive", "Sensitive {}"),
        ("Fresh Breath", "Fresh-Breath {}"),
        ("Kids", "Kids' {}"),
    ),
    ", {}",
    (
        "Peppermint",
        "Spearmint",
        "Cool Mint",
        "Arctic Blue",
        "Coral",
        "Aloe Mint",
        "Berry",
        "Citrus Mint",
        "Snow White",
        "Lagoon",
    ),
    (
        Product("Toothbrushes", "Toothbrush", 12, PACK, ("Brush Heads", "Toothpaste")),
        Product("Brush Heads", "Brush Heads", 18, PACK, ("Toothpaste", "Mouthwash")),
        Product("Toothpaste", "Toothpaste", 5, TUBE, ("Mouthwash", "Dental Floss")),
        Product("Mouthwash", "Mouthwash", 7, LIQUID, ("Dental Floss", "Toothpaste")),
        Product("Dental Floss", "Dental Floss", 4, PACK, ("Brush Heads", "Toothbrushes")),
    ),
)
DEPARTMENTS = (HAIR, SKIN, MAKEUP, BODY, SHAVE, NAILS, SCENT, ORAL)

TIERS = ("budget", "mid-range", "premium", "luxury")
TIER_PRICE = (0.55, 1.0, 1.8, 3.4)  # factor on a product's price

BRAND_STARTS = (
    *("Vel", "Lun", "Mar", "Sol", "Cal", "Ner", "Ori", "Fen", "Bri", "Tal", "Eli", "Hav", "Jun"),
    *("Kes", "Lor", "Mira", "Nola", "Pel", "Quin", "Ros", "Sera", "Thal", "Umb", "Ver", "Wil"),
    *("Zel", "Amb", "Cor", "Del", "Est", "Isol", "Gal"),
)
BRAND_ENDS = (
    *("mora", "essa", "vine", "dell", "wyn", "lume", "bloom", "ora", "fleur", "haven", "ique"),
    *("ton", "mere", "brook", "leaf", "aura", "elle", "field", "ridge", "ana", "ette", "stone"),
    *("iva", "mont", "dew", "lyn", "oria", "berry", "glow", "enne", "moss", "dale"),
)
LINE_FIRST = (
    *("Silk", "Pure", "Daily", "Velvet", "Botanic", "Bright", "Deep", "Gentle", "Golden", "Ultra"),
    *("Cloud", "Crystal", "Wild", "Ocean", "Royal", "True", "Night", "Morning", "Urban", "Garden"),
)
LINE_LAST = (
    *("Ritual", "Repair", "Balance", "Renew", "Essentials", "Therapy", "Touch", "Escape", "Care"),
    *("Revive", "Comfort", "Studio"),
)
