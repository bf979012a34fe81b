"""An IAM policy that is enforced: what it does not allow is refused, as AWS does it.

Actions, with `*`, and conditions on the tags of the request and of the resource are looked at.
`Resource` is not, and `iam:PassRole` is never asked for: no call is named so. A policy with anything
else is refused when it is set, so that nothing is allowed by not being understood.
"""

import fnmatch
import re

from .wire import AwsError, tag_map

KEY = re.compile(r"(?:aws:RequestTag|aws:ResourceTag|ec2:ResourceTag)/(.+)")
OPERATORS = {
    "StringEquals": lambda value, wanted: value == wanted,
    "StringLike": fnmatch.fnmatchcase,
}
CODES = {"ec2": "UnauthorizedOperation", "iam": "AccessDenied", "sts": "AccessDenied"}


def _list(value):
    return value if isinstance(value, list) else [value]


class Policy:
    """A policy document, and whose calls it is about; without one everything is allowed."""

    def __init__(self):
        self.document, self.principal = None, None

    def clear(self):
        self.__init__()

    def set(self, document, principal=None):
        for statement in document["Statement"]:
            unknown = set(statement) - {"Sid", "Effect", "Action", "Resource", "Condition"}
            if unknown or statement["Effect"] != "Allow":
                raise ValueError(f"{statement.get('Sid')}: only plain Allow statements are known")
            for operator, pairs in statement.get("Condition", {}).items():
                for key in pairs:
                    if operator not in OPERATORS or not KEY.fullmatch(key):
                        raise ValueError(f"{statement.get('Sid')}: {operator} {key} is not known")
        self.document, self.principal = document, principal

    def check(self, request, parameters, tags_of):
        """Refuses a call that no statement allows; `tags_of()` gives each resource's tags."""
        if not self.document or self.principal not in (None, request.principal):
            return
        action = f"{request.service}:{request.action}"
        own = _request_tags(request, parameters)
        for statement in self.document["Statement"]:
            patterns = _list(statement["Action"])
            if any(fnmatch.fnmatchcase(action.lower(), p.lower()) for p in patterns):
                conditions = statement.get("Condition", {})
                if _holds(conditions, own, tags_of):
                    return
        code = CODES.get(request.service, "AccessDeniedException")
        raise AwsError(
            code,
            "You are not authorized to perform this operation. The caller is not authorized to "
            f"perform: {action} because no identity-based policy allows the {action} action",
            403,
        )


def _holds(conditions, own, tags_of):
    for operator, pairs in conditions.items():
        for key, wanted in pairs.items():
            tag = KEY.fullmatch(key).group(1)
            sources = [own] if key.startswith("aws:RequestTag/") else tags_of()
            if not sources:
                return False
            for tags in sources:
                fits = OPERATORS[operator]
                if tag not in tags or not any(fits(tags[tag], w) for w in _list(wanted)):
                    return False
    return True


def _request_tags(request, parameters):
    tags = {}
    for specification in parameters.get("TagSpecifications") or []:
        tags.update(tag_map(specification.get("Tags")))
    if isinstance(parameters.get("Tags"), list):
        tags.update(tag_map(parameters["Tags"]))
    for name, key in parameters.items() if request.service == "iam" else ():
        found = re.fullmatch(r"Tags\.member\.(\d+)\.Key", name)
        if found:
            tags[key] = parameters.get(f"Tags.member.{found.group(1)}.Value", "")
    return tags
