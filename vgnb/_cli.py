"Console scripts that are not about images."


def nbdev_export():
    "`nbdev_export`, as fingers know it: nbdev's exporter; without nbdev, say which extra brings it."
    try: from nbdev.doclinks import nbdev_export as export
    except ModuleNotFoundError as e:
        raise SystemExit(f"nbdev_export needs nbdev ({e.name} is missing): pip install 'vgnb[dev]'") from None
    export()
