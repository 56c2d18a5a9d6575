"""Pictures: matplotlib figures, the frame scrubber, the stand-alone HTML player, GIFs.

Colours are those of Okabe and Ito: distinct for colour-blind readers, legible on light and dark pages.
"""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"  # baselines, in every figure
