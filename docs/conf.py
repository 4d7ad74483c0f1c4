"""Settings of the documentation site, for `sphinx-build -W --keep-going docs docs/_build/html`."""

import metajax

project = "metajax"
author = "The metajax developers"
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

# Docstrings write code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Every build runs the notebooks. `-D nb_execution_mode=off` leaves them out, for a quick look at other pages.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True

_ALIASES = {
    "Callable[[Any, Any, Array], tuple[Array, dict[str, Array]]]": "LossFn",
    "Callable[[Array], Task]": "TaskSampler",
    "Callable[[str, Any], bool] | Any": "mask",
}


def _name_types(app, what, name, obj, options, signature, return_annotation):
    """Write the names of long types in signatures, as the source does."""

    def named(text):
        for module in ("collections.abc.", "jax.", "metajax.types."):
            text = text.replace(module, "") if text else text
        for expanded, alias in _ALIASES.items():
            text = text.replace(expanded, alias) if text else text
        return text

    return named(signature), named(return_annotation)


def setup(app):
    """Register the hooks of this file."""
    app.connect("autodoc-process-signature", _name_types)
