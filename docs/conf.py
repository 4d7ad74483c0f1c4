"""Settings of the documentation site, for `sphinx-build -W --keep-going docs docs/_build/html`."""

import re

import metajax

project = "metajax"
author = "The metajax developers"
copyright = f"2026, {author}"
release = version = metajax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = f"metajax {release}"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["wide.css"]

# Docstrings write code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_attr_annotations = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Every build runs the notebooks. `-D nb_execution_mode=off` leaves them out, for a quick look at other pages.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

_ALIASES = {
    "Callable[[Any, Any, Array], tuple[Array, dict[str, Array]]]": "LossFn",
    "Callable[[Array], Task]": "TaskSampler",
    "Callable[[str, Any], bool] | Any": "mask",
}
"""Short names of types in signatures. `mask` is a predicate on paths, or a pytree of bools."""


def _shorten_types(app, what, name, obj, options, signature, return_annotation):
    """Write types in signatures without their modules, and long types by their names."""

    def shorten(text):
        if text is None:
            return None
        text = re.sub(r"~?\b(?:[a-zA-Z_]\w*\.)+(\w+)", r"\1", text.replace("~", ""))
        for long, short in _ALIASES.items():
            text = text.replace(long, short)
        return text

    return shorten(signature), shorten(return_annotation)


def setup(app):
    """Register the hooks of this file."""
    app.connect("autodoc-process-signature", _shorten_types)
