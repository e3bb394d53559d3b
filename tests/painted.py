"What painting promises of any model on a grid: known cells stay, all others are decided."
import torch

from vgnb.sampling.applications import Inpaint, Morph, Outpaint

def keeps_what_is_known(request, codes: torch.Tensor):
    "In-painting, out-painting and morphing of three pictures of 3x4 codes (3, 12, 1)."
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1:, 1:3] = True
    made = Inpaint(mask).paint(request).sample()
    assert torch.equal(made[:, ~mask.flatten()], codes[:, ~mask.flatten()])
    wide = Outpaint((4, 6), at=(1, 1)).paint(request).sample().view(3, 4, 6)
    assert torch.equal(wide[:, 1:, 1:5], codes.view(3, 3, 4)) and (wide >= 0).all()
    assert Morph(frames=2).paint(request).frames().shape == (2, 3, 12, 1)
