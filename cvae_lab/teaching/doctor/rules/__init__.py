"""List of the mistakes that `doctor` finds. Each mistake has a name, a function, a reason and a correction."""

import ast
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cvae_lab.teaching.doctor.rules import code_rules, frame_rules, latent_rules, pixel_rules


class Rule(NamedTuple):
    """A mistake: name, function that finds the mistake, reason and correction. With `note`, the code is not wrong."""

    name: str
    find: Callable[[ast.Module], Iterator[int]]
    why: str
    instead: str
    note: bool = False


RULES = (
    Rule("uniform noise", latent_rules.uniform_noise,
         "z must be normally distributed; uniform noise on [0, 1) has mean 0.5 and a variance of 1/12",
         "torch.randn_like(mu), or torch.randn(shape)"),
    Rule("logvar used as a standard deviation", latent_rules.logvar_as_deviation,
         "the standard deviation is exp(logvar / 2); otherwise KL and sample belong to different distributions",
         "mu + torch.exp(0.5 * logvar) * eps"),
    Rule("posterior of the previous frame", frame_rules.posterior_of_previous_frame,
         "the input of the posterior must be the predicted frame, otherwise z has no information about it",
         "the encoding of frame t instead of frame t - 1 as the input of Gaussian_Predictor"),
    Rule("label of another frame", frame_rules.label_off_by_one,
         "every prediction shows the pose of a neighbouring frame",
         "the label of the predicted frame as the input of the decoder"),
    Rule("posterior z in evaluation", frame_rules.posterior_in_evaluation,
         "the posterior depends on the true frame, so this is not a score of a prediction",
         "z = torch.randn(shape) in validation and test"),
    Rule("teacher forcing in evaluation", frame_rules.teacher_forced_evaluation,
         "a copy of the previous true frame already has a PSNR of 39 to 45 dB on real clips",
         "the last prediction of the model as the previous frame"),
    Rule("loss of the last frame only", frame_rules.loss_of_last_frame,
         "the other frames of the clip do not train the model",
         "a sum of the losses of all frames, computed inside the loop"),
    Rule("optimizer state not saved", code_rules.optimizer_not_saved,
         "after a resume, the optimizer starts without its moments, and the loss rises suddenly",
         '"optimizer": self.optim.state_dict()'),
    Rule("optimizer state not restored", code_rules.optimizer_not_restored,
         "the resumed optimizer starts without its moments, and the loss rises suddenly",
         "self.optim.load_state_dict(checkpoint[...])"),
    Rule("schedule restarts on resume", code_rules.restarted_schedules,
         "after a resume, the learning rate has its first value again",
         "scheduler.load_state_dict(checkpoint[...]), and save the state of the scheduler"),
    Rule("pixels wrap around", pixel_rules.wrapped_pixels,
         "values outside [0, 1] become bright or dark pixels in the GIF",
         "frame.clamp(0, 1) before the conversion to uint8"),
    Rule("clips in fixed order", code_rules.unshuffled_clips,
         "consecutive batches contain almost the same frames, so their gradients are similar",
         "DataLoader(..., shuffle=True)"),
    Rule("gradients never reset", code_rules.missing_zero_grad,
         "the gradients of all earlier steps are added",
         "optimizer.zero_grad() before loss.backward()"),
    Rule("module hides nn.Module.eval", code_rules.hidden_eval,
         "batch norm keeps using the statistics of the batch in validation and test",
         "another name for this method, and self.train(False) in it"),
    Rule("PSNR mean over one frame too few", code_rules.short_mean,
         "629 frames of 30 dB then have a mean of 30.05 dB; the code of the assignment of 2023 does this",
         "the sum divided by the number of frames", note=True),
    Rule("clips do not overlap", code_rules.separate_clips,
         "clips of 16 frames then start only at every 16th frame, so there are few different clips",
         "clips that may start at any frame of a recording", note=True),
    Rule("ramp by repeated addition", code_rules.accumulated_ramp,
         "the last value of each cycle is not reached, and cycles overlap if their length is not a whole number",
         "a closed form such as min(1, phase / ratio)", note=True),
    Rule("one teacher-forcing draw per epoch", code_rules.one_draw_per_epoch,
         "whole epochs are trained with or without teacher forcing, so the actual ratio has a large variance",
         "one random decision per batch, clip or step", note=True),
    Rule("KL averaged over latents", latent_rules.averaged_kl,
         "the effective KL weight is then smaller than beta by a factor equal to the number of latents",
         "the sum over latents, and the mean over the batch", note=True),
)  # fmt: skip
