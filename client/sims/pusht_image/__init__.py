"""Push-T as a camera above the board sees it; all but the eyes is that of `client.sims.pusht`.

The pictures are drawn as gym-pusht draws its pixel observations, from which the published data sets
were made, but for the goal: there one outline is painted, and it alone says where the T shall go.
Here every goal has its outline, always, and which one is meant only the instruction says.
"""
