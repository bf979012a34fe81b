"""Small corrections to moto: what it answers wrongly or too slowly."""

import contextlib
import re

from . import ACCOUNT
from .wire import timestamp


def apply(on_launch):
    """Patches moto once; `on_launch` hears of every instance it makes."""
    _tags()
    _filters()
    _launches(on_launch)
    _profiles()
    _launch_templates()
    _images()
    _parameters()


def _tags():
    # moto looks a resource's tags up by scanning those of all resources.
    from moto.ec2.models.core import TaggedEC2Resource

    def get_tags(self):
        mine = self.ec2_backend.tags.get(self.id, {})
        return [{"key": k, "value": v, "resource_id": self.id} for k, v in mine.items()]

    TaggedEC2Resource.get_tags = get_tags


class Filters(dict):
    """Filters by name, where `items` gives also those that share a name: EC2 wants them all met."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.pairs = pairs

    def items(self):
        return self.pairs


def _filters():
    # moto keeps only the last of several filters of one name.
    from moto.ec2.responses._base_response import EC2BaseResponse

    plain = EC2BaseResponse._filters_from_querystring

    def filters_from_querystring(self):
        found = plain(self)
        given = self._get_param("Filters", []) or self._get_param("Filter", [])
        if len(found) == len(given):
            return found
        return Filters([(f["Name"], f.get("Values", [])) for f in given])

    EC2BaseResponse._filters_from_querystring = filters_from_querystring


def _launches(on_launch):
    from moto.ec2.models import EC2Backend

    plain = EC2Backend.run_instances

    def run_instances(self, *args, **kwargs):
        reservation = plain(self, *args, **kwargs)
        for instance in reservation.instances:
            on_launch(self, instance, reservation.id, kwargs)
        return reservation

    EC2Backend.run_instances = run_instances


def _profiles():
    # moto ignores PathPrefix.
    from moto.core.responses import ActionResult
    from moto.iam.responses import IamResponse

    def list_instance_profiles(self):
        prefix = self._get_param("PathPrefix") or "/"
        found = [p for p in self.backend.get_instance_profiles() if p.path.startswith(prefix)]
        return ActionResult({"InstanceProfiles": found})

    IamResponse.list_instance_profiles = list_instance_profiles


def _launch_templates():
    # moto answers a missing template with codes that EC2 does not use, or not at all.
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models import EC2Backend

    def missing_id(tid):
        text = f"The specified launch template, with template ID {tid}, does not exist."
        return EC2ClientError("InvalidLaunchTemplateId.NotFound", text)

    def missing_name(name):
        text = f"The specified launch template, with template name {name}, does not exist."
        return EC2ClientError("InvalidLaunchTemplateName.NotFoundException", text)

    def check(self, names, ids):
        for name in names or []:
            if name not in self.launch_template_name_to_ids:
                raise missing_name(name)
        for tid in ids or []:
            if tid not in self.launch_templates:
                raise missing_id(tid)

    plain_delete = EC2Backend.delete_launch_template
    plain_describe = EC2Backend.describe_launch_templates

    def delete_launch_template(self, name, tid):
        check(self, [name] if name else [], [tid] if tid and not name else [])
        return plain_delete(self, name, tid)

    def describe_launch_templates(self, template_names=None, template_ids=None, filters=None):
        check(self, template_names, template_ids)
        return plain_describe(self, template_names, template_ids, filters)

    EC2Backend.delete_launch_template = delete_launch_template
    EC2Backend.describe_launch_templates = describe_launch_templates


def is_deprecated(image):
    """Whether the time after which an image is no longer listed is over; RFC 3339 sorts by time."""
    when = getattr(image, "deprecation_time", None)
    return bool(when) and when <= timestamp()


def _images():
    # moto knows no deprecation: such images are listed for their owner, by id, or if asked for.
    from moto.core.responses import ActionResult
    from moto.ec2.responses.amis import AmisResponse

    plain = AmisResponse.describe_images

    def describe_images(self):
        answer = plain(self)
        asked = str(self._get_param("IncludeDeprecated", False)).lower() == "true"
        if asked or self._get_param("ImageIds", []):
            return answer
        images = answer.result["Images"]
        kept = [i for i in images if i.owner_id == ACCOUNT or not is_deprecated(i)]
        return ActionResult({"Images": kept})

    AmisResponse.describe_images = describe_images


def _parameters():
    # moto knows ARNs of the account's own parameters, but none of AWS's public ones.
    from moto.ssm.models import SimpleSystemManagerBackend

    arn = re.compile(r"arn:aws[a-z-]*:ssm:[a-z0-9-]+:\d*:parameter(?=/)")
    SimpleSystemManagerBackend._strip_parameter_arn = lambda self, name: arn.sub("", name, count=1)


@contextlib.contextmanager
def moto_errors():
    """moto's own exceptions as ours."""
    from moto.core.exceptions import ServiceException

    from .wire import AwsError

    try:
        yield
    except ServiceException as error:
        raise AwsError(error.code, error.message) from error
