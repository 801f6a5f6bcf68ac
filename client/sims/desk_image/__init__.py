"""The desk as a camera across the table sees it; all but the eyes is that of `client.sims.desk`.

Where the objects are only the pictures show; of itself the robot knows where its hand is and how
far its gripper is open. It draws its pictures, for which the machine needs a library (the message
names the package); the desk itself needs none.
"""
