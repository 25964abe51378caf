"""What the built-in networks know: popular words, and digits.

Words of two letters are the document's own list (figure 6); those of figures 7 and 8 stand in its drawings alone, so
the longer ones are ours. Digits are drawn, for those who have no MNIST at hand: `--images` takes real ones.
"""

import numpy as np
import numpy.typing as npt

_TEXT = (
    "ad ah am as at be by do go ha he hi ie if in it me mr ms my no of oh ok on or pc pm re so to tv uh "
    "up us vs we "
    "act age air all and any are art bad bag bar bat bed big bit box boy bus but buy can cap car cat cup "
    "cut day did dog dry eat egg end eye far few fit fly for fun get got had has hat her him his hot how "
    "ice its job key law leg let lie low man map may men mix new not now odd off oil old one our out own "
    "pay pen put ran red run sat saw say sea see set she sit six sky son sun tax ten the tie top try two "
    "use war was way who why win yes yet you "
    "able also area away baby back ball bank base been best blue boat body book both call came card care "
    "case city cold come cost dark data date deal door down each east easy even ever face fact fall farm "
    "fast feel fire fish five food foot form four free from full game gave girl give goes gold gone good "
    "half hand hard have head hear help here high hold home hope hour idea into just keep kind king knew "
    "know land last late lead left less life like line list live long look lost love made main make many "
    "mean mind more most move much must name near need next once only open over page part past plan play "
    "real rest road room said same save seem sent ship show side some soon sort stay stop such sure take "
    "talk team tell than that them then they this time told took town tree true turn type upon very wait "
    "walk wall want warm week well went were what when wide will wind wish with word work year your "
)

WORDS = {letters: tuple(word for word in _TEXT.split() if len(word) == letters) for letters in (2, 3, 4)}
"""Letters → words."""

WINDOWS = {
    (2, 1): (((0, 1),),),
    (2, 2): (((0,), (1,)), ((0, 1),)),
    (2, 3): (((0,), (1,)), ((0,), (1,)), ((0, 1),)),
    (3, 1): (((0, 1, 2),),),
    (3, 2): (((0, 1), (1, 2)), ((0, 1, 2),)),
    (3, 3): (((0, 1), (1, 2)), ((0, 1), (1, 2)), ((0, 1, 2),)),
    (4, 1): (((0, 1, 2, 3),),),
    (4, 2): (((0, 1), (2, 3)), ((0, 1, 2, 3),)),
    (4, 3): (((0, 1), (1, 2), (2, 3)), ((0, 1, 2), (1, 2, 3)), ((0, 1, 2, 3),)),
}
"""(letters, layers) → letters that the neurons of each layer look at; those of (4, 2) and (4, 3) are the document's."""

GLYPHS = (
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)
"""Digits 0 to 9 on 7 rows of 5 pixels; a row is a number whose highest bit is the pixel at the left."""


def digits() -> npt.NDArray[np.float32]:
    """The ten digits three times as large, [10, 28, 28] of 0 and 1, laid out as MNIST's are."""
    rows = np.array(GLYPHS)[:, :, None]
    pixels = (rows >> np.arange(4, -1, -1)) & 1  # [10, 7, 5]
    large = pixels.repeat(3, axis=1).repeat(3, axis=2)  # [10, 21, 15]
    found = np.zeros((len(GLYPHS), 28, 28), np.float32)
    found[:, 3:24, 6:21] = large
    return found
