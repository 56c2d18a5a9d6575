"""Import of all frame players for notebooks: widgets, HTML page, GIF."""

from cvae_lab.views.clip_views import write_gif
from cvae_lab.views.html_player import embed, html_player, write_html
from cvae_lab.views.scrubber import Scrubber, SliderBox, scrubber
from cvae_lab.views.sprites import panels

__all__ = ["Scrubber", "SliderBox", "embed", "html_player", "panels", "scrubber", "write_gif", "write_html"]
