"""What the poisoning attacks share: see `touch`."""

from buckler.touch import CHUNK as CHUNK
from buckler.touch import always as always
from buckler.touch import changed as changed
from buckler.touch import chosen as chosen
from buckler.touch import classes as classes
from buckler.touch import counted as counted
from buckler.touch import images as images
from buckler.touch import next_class as next_class
