"Console scripts that are not about images."


def nbdev_export():
    "Export the notebooks with nbdev; without nbdev, say which extra brings it."
    try:
        from nbdev.export import nbdev_export as export
    except ModuleNotFoundError as e:
        raise SystemExit(f"nbdev_export needs nbdev ({e.name} is missing): pip install 'vgnb[dev]'")
    export()
