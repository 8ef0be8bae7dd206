"""Renders and checks the chart with Helm itself, and its objects by Kubernetes' schemas.

Reads one JSON object from standard input: `chart`, a directory; `requests`, each with `values`, `name` and `namespace`;
`versions` of Kubernetes. Writes one: `helm`, its version; `lint`, what it finds with the first request's values;
`rendered`, for each request `text` by template, `objects`, and `invalid` (what no schema takes), or `error`.
"""

import hashlib
import importlib.util
import json
import pathlib
import sys

# Native code from PyPI (helm-python-sdk 0.2.2, Linux, x86_64): Helm's own Go code behind a C interface.
LIBRARY = "9108c3a68d6ed3a394d02543bb4afeeb9f9e2bbcf9fbc228f48ac5576e3bdf83"

package = pathlib.Path(importlib.util.find_spec("helm_python").origin).parent
library = package / "lib" / "libhelm_c.so"
found = hashlib.sha256(library.read_bytes()).hexdigest()
if found != LIBRARY:
    sys.exit(f"{library.name} has SHA-256 {found}, not the one that was looked at")

import helm_python as helm  # noqa: E402
import kubernetes_validate  # noqa: E402
import yaml  # noqa: E402


def invalid(thing, versions):
    """What the schemas of these versions have against an object; kinds of others' are not in them."""
    for version in versions:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            if "monitoring.coreos.com" not in thing["apiVersion"]:
                yield f"{version}: no {thing['apiVersion']} {thing['kind']}"
        except kubernetes_validate.ValidationError as error:
            yield f"{version}: {thing['kind']} {thing['metadata']['name']}: {error.message}"


def render(chart, request, versions):
    try:
        text = chart.render(request["values"], name=request["name"], namespace=request["namespace"])
    except helm.HelmError as error:
        return {"error": str(error)}
    objects = [
        thing
        for template, part in sorted(text.items())
        if template.endswith(".yaml")
        for thing in yaml.safe_load_all(part)
        if thing
    ]
    problems = [problem for thing in objects for problem in invalid(thing, versions)]
    return {"text": text, "objects": objects, "invalid": problems}


asked = json.load(sys.stdin)
with helm.Chart.load(asked["chart"]) as chart:
    rendered = [render(chart, request, asked["versions"]) for request in asked["requests"]]
first = asked["requests"][0]
lint = helm.lint(asked["chart"], first["values"], strict=True)
json.dump({"helm": helm.helm_sdk_version(), "lint": lint, "rendered": rendered}, sys.stdout)
