//! Models that give one row for each token of a text, and heads on these. A family says in its file what is its own;
//! `recipe` is the form it fills in, `assemble` binds tensors and builds the graph.

mod albert;
pub(super) mod assemble;
mod bert;
mod deberta;
mod distilbert;
mod electra;
mod modernbert;
mod mpnet;
pub(super) mod recipe;
mod roberta;

use super::super::registry::Class;
use recipe::Kind::{Answer, MaskedLm, Model, Sequence, Tokens};

/// Class, `model_type` and reader.
pub(super) const CLASSES: &[Class] = &[
    Class::new("BertModel", "bert", |f| bert::read(f, Model)),
    Class::new("BertForMaskedLM", "bert", |f| bert::read(f, MaskedLm)),
    Class::new("BertForPreTraining", "bert", bert::pretraining),
    Class::new("BertForSequenceClassification", "bert", |f| bert::read(f, Sequence)),
    Class::new("BertForTokenClassification", "bert", |f| bert::read(f, Tokens)),
    Class::new("BertForQuestionAnswering", "bert", |f| bert::read(f, Answer)),
    Class::new("RobertaModel", "roberta", |f| roberta::read(f, Model)),
    Class::new("RobertaForMaskedLM", "roberta", |f| roberta::read(f, MaskedLm)),
    Class::new("RobertaForSequenceClassification", "roberta", |f| roberta::read(f, Sequence)),
    Class::new("RobertaForTokenClassification", "roberta", |f| roberta::read(f, Tokens)),
    Class::new("RobertaForQuestionAnswering", "roberta", |f| roberta::read(f, Answer)),
    Class::new("XLMRobertaModel", "xlm-roberta", |f| roberta::read(f, Model)),
    Class::new("XLMRobertaForMaskedLM", "xlm-roberta", |f| roberta::read(f, MaskedLm)),
    Class::new("XLMRobertaForSequenceClassification", "xlm-roberta", |f| roberta::read(f, Sequence)),
    Class::new("XLMRobertaForTokenClassification", "xlm-roberta", |f| roberta::read(f, Tokens)),
    Class::new("XLMRobertaForQuestionAnswering", "xlm-roberta", |f| roberta::read(f, Answer)),
    Class::new("CamembertModel", "camembert", |f| roberta::read(f, Model)),
    Class::new("CamembertForMaskedLM", "camembert", |f| roberta::read(f, MaskedLm)),
    Class::new("CamembertForSequenceClassification", "camembert", |f| roberta::read(f, Sequence)),
    Class::new("CamembertForTokenClassification", "camembert", |f| roberta::read(f, Tokens)),
    Class::new("CamembertForQuestionAnswering", "camembert", |f| roberta::read(f, Answer)),
    Class::new("DistilBertModel", "distilbert", |f| distilbert::read(f, Model)),
    Class::new("DistilBertForMaskedLM", "distilbert", |f| distilbert::read(f, MaskedLm)),
    Class::new("DistilBertForSequenceClassification", "distilbert", |f| distilbert::read(f, Sequence)),
    Class::new("DistilBertForTokenClassification", "distilbert", |f| distilbert::read(f, Tokens)),
    Class::new("DistilBertForQuestionAnswering", "distilbert", |f| distilbert::read(f, Answer)),
    Class::new("ElectraModel", "electra", |f| electra::read(f, Model)),
    Class::new("ElectraForMaskedLM", "electra", |f| electra::read(f, MaskedLm)),
    Class::new("ElectraForPreTraining", "electra", electra::discriminator),
    Class::new("ElectraForSequenceClassification", "electra", |f| electra::read(f, Sequence)),
    Class::new("ElectraForTokenClassification", "electra", |f| electra::read(f, Tokens)),
    Class::new("ElectraForQuestionAnswering", "electra", |f| electra::read(f, Answer)),
    Class::new("AlbertModel", "albert", |f| albert::read(f, Model)),
    Class::new("AlbertForMaskedLM", "albert", |f| albert::read(f, MaskedLm)),
    Class::new("AlbertForSequenceClassification", "albert", |f| albert::read(f, Sequence)),
    Class::new("AlbertForTokenClassification", "albert", |f| albert::read(f, Tokens)),
    Class::new("AlbertForQuestionAnswering", "albert", |f| albert::read(f, Answer)),
    Class::new("MPNetModel", "mpnet", |f| mpnet::read(f, Model)),
    Class::new("MPNetForMaskedLM", "mpnet", |f| mpnet::read(f, MaskedLm)),
    Class::new("MPNetForSequenceClassification", "mpnet", |f| mpnet::read(f, Sequence)),
    Class::new("MPNetForTokenClassification", "mpnet", |f| mpnet::read(f, Tokens)),
    Class::new("MPNetForQuestionAnswering", "mpnet", |f| mpnet::read(f, Answer)),
    Class::new("ModernBertModel", "modernbert", |f| modernbert::read(f, Model)),
    Class::new("ModernBertForMaskedLM", "modernbert", |f| modernbert::read(f, MaskedLm)),
    Class::new("ModernBertForSequenceClassification", "modernbert", |f| modernbert::read(f, Sequence)),
    Class::new("ModernBertForTokenClassification", "modernbert", |f| modernbert::read(f, Tokens)),
    Class::new("ModernBertForQuestionAnswering", "modernbert", |f| modernbert::read(f, Answer)),
    Class::new("DebertaV2Model", "deberta-v2", |f| deberta::read(f, Model)),
    Class::new("DebertaV2ForMaskedLM", "deberta-v2", |f| deberta::read(f, MaskedLm)),
    Class::new("DebertaV2ForSequenceClassification", "deberta-v2", |f| deberta::read(f, Sequence)),
    Class::new("DebertaV2ForTokenClassification", "deberta-v2", |f| deberta::read(f, Tokens)),
    Class::new("DebertaV2ForQuestionAnswering", "deberta-v2", |f| deberta::read(f, Answer)),
];
