"""Compose one MuJoCo scene from the parts that the metaworld package ships; no mesh is copied."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import mujoco

from client.sims.desk.spec import FIXTURES, SUBSTEP_S

_SCENE = """
<mujoco model="desk">
  <compiler meshdir="{assets}/sawyer_xyz" texturedir="{assets}/sawyer_xyz"/>
  <include file="{assets}/scene/basic_scene.xml"/>
  <include file="{parts}/drawer_dependencies.xml"/>
  <include file="{parts}/handle_press_dependencies.xml"/>
  <include file="{parts}/faucet_dependencies.xml"/>
  <include file="{parts}/xyz_base_dependencies.xml"/>
  <worldbody>
    <include file="{parts}/xyz_base.xml"/>
    <body name="drawer"><include file="{parts}/drawer.xml"/></body>
    <body name="lever"><include file="{parts}/handle_press.xml"/></body>
    <body name="faucet"><include file="{parts}/faucet.xml"/></body>
  </worldbody>
  <actuator>
    <position ctrllimited="true" ctrlrange="-1 1" joint="r_close" kp="400"/>
    <position ctrllimited="true" ctrlrange="-1 1" joint="l_close" kp="400"/>
  </actuator>
  <equality>
    <weld body1="mocap" body2="hand" solref="0.02 1" relpose="0 0 0 -1 0 0 0" torquescale="5"/>
  </equality>
</mujoco>
"""


def assets_folder() -> Path:
    """Folder of XML parts and meshes inside the installed metaworld package.

    Found without importing the package, which would load all its environments.

    Raises:
        ModuleNotFoundError: metaworld is not installed.
    """
    found = find_spec("metaworld")
    if found is None or found.origin is None:
        msg = "metaworld, which the desk is built from, is not installed: install the extra `sim`"
        raise ModuleNotFoundError(msg, name="metaworld")
    return Path(found.origin).parent / "assets"


def build_model() -> mujoco.MjModel:
    """Compile the desk.

    Differs from Meta-World's scenes in that gravity acts on neither the arm nor the three moving
    parts: the arm's weight is balanced (as a real Sawyer's controller does) and every joint stays
    where an episode puts it. Dry friction keeps a knocked drawer from coasting to its end.
    """
    assets = assets_folder().as_posix()
    spec = mujoco.MjSpec.from_string(_SCENE.format(assets=assets, parts=f"{assets}/objects/assets"))
    spec.option.timestep = SUBSTEP_S
    for body in spec.bodies:
        body.gravcomp = 1.0
    for fixture in FIXTURES:
        body = spec.body(fixture.body)
        body.pos = [*fixture.place, 0.0]
        (joint,) = body.find_all(mujoco.mjtObj.mjOBJ_JOINT)
        joint.name = fixture.joint
        joint.frictionloss = fixture.friction
    return spec.compile()
