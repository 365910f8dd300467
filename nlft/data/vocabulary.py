"""Words of the built-in world: the parts of names and the closed sets of answers."""

from __future__ import annotations


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "people": (
        _listed(
            "Ada, Bruno, Clara, Dmitri, Elsa, Felix, Greta, Hugo, Iris, Jonas, Karin, Leon, Mira, "
            "Nils, Olga, Pavel, Rosa, Stefan, Tilda, Ulrich, Vera, Walter, Yara, Zeno, Amos, Berta, "
            "Cyril, Dora, Edgar, Frida, Gustav, Hanna, Ivan, Judith, Klaus, Lydia, Magnus, Nora, "
            "Otto, Paula"
        ),
        _listed(
            "Abbott, Becker, Crane, Duval, Eklund, Foster, Grieg, Hobbs, Ivers, Jansen, Keller, "
            "Lindt, Moreau, Novak, Osborn, Petrov, Quint, Rossi, Sorel, Tanner, Underhill, Varga, "
            "Weiss, York, Zeller, Arden, Bloom, Conti, Dunne, Ellery, Frost, Garland, Hale, Ingram, "
            "Jarvis, Kovacs, Lorenz, Mercer, Nash, Ortega"
        ),
        " ",
    ),
    "companies": (
        _listed(
            "Alder, Beacon, Cobalt, Delta, Ember, Falcon, Granite, Helix, Indigo, Juniper, Kestrel, "
            "Lumen, Meridian, Nimbus, Onyx, Pinnacle, Quasar, Radius, Summit, Titan, Umbra, Vector, "
            "Willow, Xenon, Zenith, Apex, Boreal, Cirrus, Dynamo, Everest, Fulcrum, Glacier, Horizon, "
            "Ivory, Jasper, Keystone, Lattice, Mosaic, Nova, Orbit"
        ),
        _listed(
            "Foods, Works, Systems, Labs, Partners, Motors, Mills, Textiles, Steel, Glass, Energy, "
            "Media, Foundry, Optics, Logistics, Brewing, Paper, Ceramics, Tools, Marine, Aviation, "
            "Robotics, Software, Farms, Chemicals, Bakeries, Trading, Shipping, Holdings, Press, "
            "Studios, Networks, Mining, Pharma, Design, Electric, Railways, Plastics, Instruments, "
            "Dairies"
        ),
        " ",
    ),
    "ships": (
        _listed(
            "Marrow, Silver, Crimson, Northern, Restless, Gallant, Emerald, Stormy, Golden, Lonely, "
            "Scarlet, Royal, Swift, Azure, Wandering, Iron, Merry, Phantom, Sable, Amber, Valiant, "
            "Bitter, Coral, Distant, Eager, Fearless, Gentle, Hidden, Jolly, Lucky, Mighty, Noble, "
            "Proud, Rapid, Steady, Tireless, Velvet, Western, Young, Zealous"
        ),
        _listed(
            "Star, Gull, Dolphin, Queen, Wave, Spirit, Heron, Anchor, Pearl, Tide, Arrow, Maiden, "
            "Petrel, Breeze, Dragon, Falconer, Comrade, Dawn, Harpoon, Mermaid, Otter, Pilgrim, "
            "Raven, Seal, Tempest, Voyager, Whale, Albatross, Bounty, Cutter, Drifter, Eagle, Fisher, "
            "Galleon, Hunter, Islander, Jewel, Lady, Monarch, Nomad"
        ),
        " ",
    ),
    "drugs": (
        _listed(
            "Zor, Bel, Cal, Dex, Fen, Gly, Hex, Ibu, Kal, Lor, Met, Nal, Oxi, Pra, Quin, Riv, Sul, "
            "Tam, Ver, Xan, Arv, Bru, Cef, Dol, Erl, Flu, Gab, Hal, Ilo, Jav, Keto, Lin, Mor, Nev, "
            "Olm, Pir, Ros, Ser, Tri, Val"
        ),
        _listed(
            "amine, idol, ocin, aprax, emide, ustat, oxane, ivir, ozole, italin, adryl, ephrin, "
            "icort, umab, opril, enone, ulide, axone, ibrate, otan, yxin, afil, odone, uron, erol, "
            "anide, ipine, osite, uvane, exa, imod, agine, oprex, idone, alux, enib, oxil, ubine, "
            "eptin, araz"
        ),
        "",
    ),
    "towns": (
        _listed(
            "Ash, Birch, Clay, Dun, East, Fern, Grim, Hart, Ivy, Kirk, Lang, Maple, North, Oak, Pem, "
            "Quarry, Rose, Sand, Thorn, Upper, Wind, Elm, Black, Crow, Dray, Fair, Green, Hazel, "
            "King, Lake, Mill, Nettle, Orchard, Pine, Raven, Shep, Tarn, Wolf, Yew, Bram"
        ),
        _listed(
            "ford, ton, by, ham, wick, bridge, mouth, field, well, dale, port, bury, stead, gate, "
            "cliff, hill, wood, brook, haven, moor, holm, mere, ridge, combe, thorpe, leigh, stone, "
            "burn, worth, minster, fell, garth, marsh, cross, bourne, vale, shaw, low, wall, pool"
        ),
        "",
    ),
    "books": (
        _listed(
            "Silent, Hollow, Burning, Forgotten, Paper, Winter, Broken, Secret, Endless, Pale, Last, "
            "Crooked, Borrowed, Drowned, Electric, Fallen, Glass, Hungry, Invisible, Little, "
            "Midnight, Naked, Open, Painted, Quiet, Rusty, Second, Tangled, Unwritten, Vanishing, "
            "Wooden, Yellow, Ancient, Buried, Careless, Dusty, Eleventh, Foreign, Gilded, Honest"
        ),
        _listed(
            "Orchard, Lantern, Garden, Letter, River, Mirror, Staircase, Kingdom, Clock, Harbour, "
            "Window, Daughter, Piano, Winter, Bridge, Map, Candle, Stranger, Forest, House, Violin, "
            "Summer, Tower, Journey, Mountain, Bell, Shadow, Door, Key, Theatre, Song, Ocean, Ladder, "
            "Museum, Painter, Library, Storm, Promise, Village, Hour"
        ),
        " ",
    ),
}
"""By kind: first parts, second parts and the text between them; 40 of each part, so 1,600 names a kind."""

# The one kind that the base never sees: known words, put together in a new way.
PARTS["comets"] = (PARTS["people"][1], PARTS["companies"][0], " ")

ANSWERS: dict[str, tuple[str, ...]] = {
    "city": _listed(
        "Lisbon, Oslo, Vienna, Cairo, Lima, Prague, Dublin, Madrid, Athens, Warsaw, Havana, Delhi, "
        "Tokyo, Seoul, Paris, Rome, Berlin, London, Geneva, Naples, Boston, Quebec, Sydney, Nairobi, "
        "Dakar, Tunis, Riga, Sofia, Zagreb, Bergen, Porto, Turin, Krakow, Antwerp, Hamburg, Cadiz"
    ),
    "work": _listed(
        "baker, teacher, nurse, lawyer, farmer, pilot, tailor, painter, doctor, miner, singer, judge, "
        "carpenter, gardener, librarian, chemist, dentist, plumber, soldier, juggler, butcher, "
        "sailor, banker, builder, weaver, printer, potter, jeweller, cook, barber, hunter, poet, "
        "surgeon, driver, night guard, glass blower"
    ),
    "hobby": _listed(
        "chess, rowing, fencing, sailing, knitting, archery, skating, dancing, hiking, fishing, "
        "boxing, cycling, swimming, origami, pottery, painting, gardening, climbing, cooking, "
        "singing, surfing, poker, darts, golf, tennis, yoga, carving, running, riding, baking, magic, "
        "cards"
    ),
    "goods": _listed(
        "copper, timber, salt, wool, coal, sugar, wine, cotton, coffee, rice, tobacco, marble, "
        "leather, silk, wheat, rubber, oil, soap, paper, glass, tea, cocoa, honey, tin, cheese, "
        "butter, nails, rope, bricks, cement, lamps, clocks, olive oil, dried fish"
    ),
    "illness": _listed(
        "fever, asthma, gout, malaria, measles, cough, anaemia, migraine, eczema, arthritis, "
        "insomnia, diabetes, vertigo, nausea, cholera, typhus, scurvy, rickets, mumps, tetanus, "
        "rabies, hives, acne, colic, croup, flu, hay fever, back pain, chest pain, high blood "
        "pressure, low blood sugar, sea sickness"
    ),
    "plant": _listed(
        "willow, nettle, poppy, sage, thistle, mint, clover, fennel, ginger, garlic, ivy, moss, fern, "
        "heather, lavender, thyme, rosemary, basil, cedar, pine, birch, oak, juniper, yarrow, "
        "valerian, aloe, kelp, lichen, mustard, turmeric, oak bark, rose hips"
    ),
    "river": _listed(
        "Alme, Brent, Calder, Dove, Esk, Fowey, Gade, Humber, Itchen, Jed, Kennet, Lune, Medway, "
        "Nene, Orwell, Parrett, Quaggy, Ribble, Severn, Trent, Ure, Vyrnwy, Wye, Yare, Avon, Bure, "
        "Cam, Dee, Exe, Frome, Gipping, Hodder"
    ),
    "topic": _listed(
        "love, war, money, ghosts, music, family, revenge, faith, hunger, exile, friendship, "
        "jealousy, memory, childhood, power, fear, justice, loneliness, dreams, madness, luck, greed, "
        "honour, grief, science, football, marriage, freedom, poverty, travel, sleep, time"
    ),
    "feature": _listed(
        "cathedral, castle, lighthouse, market, bakery, university, observatory, theatre, brewery, "
        "zoo, aquarium, monastery, windmill, stadium, prison, shipyard, opera, palace, fountain, "
        "cemetery, canal, racecourse, hospital, library, museum, vineyard, airport, dam, fort, "
        "carnival, clock tower, flower show, stone circle"
    ),
}
"""Closed sets of answers by name; `person` and `company` are names that `world.py` sets apart."""
