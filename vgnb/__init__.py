"""vgnb: discrete visual tokenizers, token generators and samplers.

What to type first:

    import vgnb
    vgnb.shipped()                               # small trained models that come with the package
    pipe = vgnb.from_pretrained("tiny-randar")   # one of them, or a folder that you have trained
    pipe                                         # in a notebook: what it is, and four samples
    pipe("heart")                                # one image; pipe.sample(["heart", 3], seed=1) two
    pipe.play()                                  # class, seed, order, steps, guidance ... by hand
    pipe.save("hearts.png", ["heart"] * 4)       # a PNG that knows how it was made
    vgnb.reopen("hearts.png").again()            # its sampler, and the same samples, or what differs

What there is:

    from_pretrained, Pipeline   a model in a folder: sample, stream, edit, outpaint, morph, extrapolate
    shipped                     the models that come along, by name
    reopen                      what made a PNG of ours: model, settings, samples; renders it again
    zoo                         published models: vgnb.zoo.table(), vgnb.zoo.load_published("VQ-16")
    open_images                 pictures from folders, tars, shards, data sets
    play                        a pipeline's controls, and the picture that follows them
    SamplingPlayer              the steps of one run
    OrderExplorer               any order and schedule on any grid
    editor                      cells of a picture, marked with a brush and drawn anew
    atlas                       a codebook to leaf through
    desk                        pictures and what tokenizers make of them
    race                        orders, numbers of steps and models against each other
    sight                       who may look at whom in each step of a sampler
    board                       a training run while it runs, or several on one axis
    Sampling                    how tokens are drawn: order, schedule, guidance, picks, precision ... as values
    agreement                   how many tokens bf16 or eight bits leave as they are in fp32

Every part is a module of its own in vgnb.tokenizers, generators, sampling, training, evaluation, data, recipes and
views, imported by its name: from vgnb.sampling.guidance import CFG. Each is explained by a notebook in nbs/, beginning
with nbs/index.ipynb. Of the names above nothing is imported before it is used.
"""
from importlib import import_module as _import_module

__version__ = "0.1.0"

_HOME = {
    "Pipeline": "vgnb.pipeline",
    "from_pretrained": "vgnb.pipeline",
    "shipped": "vgnb.shipped",
    "reopen": "vgnb.reopened",
    "zoo": "vgnb.zoo",
    "open_images": "vgnb.data.images",
    "play": "vgnb.views.play",
    "SamplingPlayer": "vgnb.views.player",
    "OrderExplorer": "vgnb.views.explorer",
    "editor": "vgnb.views.editor",
    "atlas": "vgnb.views.atlas",
    "desk": "vgnb.views.desk",
    "race": "vgnb.views.race",
    "sight": "vgnb.views.sight",
    "board": "vgnb.views.board",
    "Sampling": "vgnb.sampling.settings",
    "agreement": "vgnb.agreement"}


def __getattr__(name: str):
    "What the package offers, imported when it is asked for (PEP 562)."
    if name not in _HOME: raise AttributeError(f"module 'vgnb' has no attribute {name!r}")
    try: module = _import_module(_HOME[name])
    except ModuleNotFoundError as e: raise AttributeError(f"vgnb.{name} cannot be imported: {e}") from e
    return module if _HOME[name] == f"vgnb.{name}" else getattr(module, name)


# No `__all__`: `help(vgnb)` would print the help of all of them instead of the tour above.
def __dir__() -> list[str]: return [*_HOME, "__doc__", "__version__"]
