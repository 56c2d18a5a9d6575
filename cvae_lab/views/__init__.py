"""Views of results: figures, frame player as widget and page, GIFs, and diagram of the modules.

The colours are from Okabe and Ito 2008. Colour-blind readers can distinguish these colours from each other and from
`GREY`.
"""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#707070"  # colour of baselines in every figure
